# Only C functions, for the other modules of the core.
