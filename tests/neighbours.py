"""Other libraries that compute in the process of fastrnn, each with its own threads.

Run as a program with an order (alone, before, after, without) and names of libraries, it imports
them before or after fastrnn, without it, or fastrnn alone. Then all compute, in turns and at once.
It prints as JSON what fastrnn computed, what the others did, and their numbers of threads.
"""

from __future__ import annotations

import hashlib
import json
import sys
import threading
from collections.abc import Callable

import numpy as np

# A neighbour: a computation, whose first call starts the library's threads, and a function that
# counts its threads. Its results depend on nothing else.
Neighbour = tuple[Callable[[], list[np.ndarray]], Callable[[], dict[str, int]]]


def torch() -> Neighbour:
    import torch

    torch.manual_seed(0)
    lstm, x = torch.nn.LSTM(64, 128), torch.rand(50, 64, 64)

    def compute() -> list[np.ndarray]:
        lstm.zero_grad()
        out, _ = lstm(x)
        out.sum().backward()
        return [out.detach().numpy(), *(p.grad.numpy() for p in lstm.parameters())]

    def count() -> dict[str, int]:
        return {"within": torch.get_num_threads(), "between": torch.get_num_interop_threads()}

    return compute, count


def scikit_learn() -> Neighbour:
    from sklearn.cluster import KMeans
    from sklearn.ensemble import HistGradientBoostingRegressor
    from threadpoolctl import threadpool_info

    X = np.random.default_rng(0).standard_normal((1500, 5))

    def compute() -> list[np.ndarray]:
        trees = HistGradientBoostingRegressor(max_iter=10, random_state=0)
        groups = KMeans(3, n_init=1, random_state=0)
        return [trees.fit(X, X[:, 0] * X[:, 1]).predict(X), groups.fit_predict(X)]

    def count() -> dict[str, int]:
        return {pool["filepath"]: pool["num_threads"] for pool in threadpool_info()}

    return compute, count


def scipy() -> Neighbour:
    from scipy import linalg

    A = np.random.default_rng(0).standard_normal((200, 200))
    return lambda: [*linalg.svd(A), linalg.solve(A, A.T)], dict


NEIGHBOURS = {"torch": torch, "sklearn": scikit_learn, "scipy": scipy}  # by the module to import
COUNT = 3  # threads of fastrnn; no neighbour has this number by default


def fastrnn() -> Callable[[], str]:
    from test_core_threads import check_all

    import fastrnn

    expected = COUNT if fastrnn._runtime.openmp() else 1
    fastrnn.set_num_threads(COUNT)

    def compute() -> str:
        assert fastrnn.get_num_threads() == expected
        return hashlib.sha256(b"".join(check_all().values())).hexdigest()

    return compute


def main(order: str, *names: str) -> dict[str, dict[str, list]]:
    """Compute in this order; collect the results of each name in a list."""
    turns: dict[str, Callable[[], str]] = {}
    counts: dict[str, Callable[[], dict[str, int]]] = {}
    results: dict[str, list[str]] = {}
    threads: dict[str, list[dict[str, int]]] = {}

    def turn(name: str) -> None:
        results.setdefault(name, []).append(turns[name]())

    def neighbours() -> None:
        for name in names:
            compute, count = NEIGHBOURS[name]()
            turns[name] = lambda compute=compute: hashlib.sha256(
                b"".join(np.ascontiguousarray(a).tobytes() for a in compute())
            ).hexdigest()
            turn(name)
            counts[name], threads[name] = count, [count()]

    if order == "before":
        neighbours()
    if order != "without":
        turns["fastrnn"] = fastrnn()
        turn("fastrnn")
    if order in ("after", "without"):
        neighbours()

    for _ in range(2):
        for name in turns:
            turn(name)

    left = dict.fromkeys(turns, 2)
    failed: list[BaseException] = []

    def work(name: str) -> None:
        try:
            while any(n > 0 for n in left.values()) and not failed:
                turn(name)
                left[name] -= 1
        except BaseException as error:
            failed.append(error)

    together = [threading.Thread(target=work, args=(name,)) for name in turns]
    for thread in together:
        thread.start()
    for thread in together:
        thread.join()
    if failed:
        raise failed[0]
    for name in turns:
        turn(name)
    for name, count in counts.items():
        threads[name].append(count())
    return {"results": results, "threads": threads}


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
