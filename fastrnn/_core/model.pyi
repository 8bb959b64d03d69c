PARAM_NAMES: tuple[str, ...]
