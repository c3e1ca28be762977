"""What worker processes have in common, whoever starts them."""

import multiprocessing
import os
import threading


def end_with_parent() -> None:
    """End this worker when the process that asked for it ends, even by ``kill -9``.

    A killed process cannot end its workers, and a worker whose parent is a fork server would go on
    for ever: each keeps the other alive.
    """

    def watch() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
