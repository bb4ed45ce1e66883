"""Random width plans of a network against the table: measured end to end, beside what was predicted for them.

Nothing is added to the table's kernels: what a plan needs and the table lacks is interpolated, as for any other plan.
"""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path

from aap_hw.device.boards import Boards
from aap_hw.device.connection import Device
from aap_hw.files import scratch_folder
from aap_hw.lut.compiling import compiler
from aap_hw.lut.fidelity import RANDOM
from aap_hw.lut.file import load_table, save_table
from aap_hw.lut.journal import Journal
from aap_hw.lut.lacking import require_kernels
from aap_hw.lut.measuring import Reference, compile_reference
from aap_hw.lut.progress import ProgressCallback
from aap_hw.lut.same_device import require_table_of
from aap_hw.lut.subject import Workload
from aap_hw.lut.table import Validation


def validate_model(
    workload: Workload,
    device: Device | Boards,
    path: Path,
    *,
    plans: int,
    seed: int,
    on_progress: ProgressCallback = lambda _: None,
    workers: int | None = None,
) -> list[Validation]:
    """Measure random width plans of a network and keep them in the table at ``path``, which is written as it grows.

    Plans that the table already holds, at the same widths, are not measured again. Of several boards one measures them
    all, as they are compared with each other.

    Returns
    -------
    The plans asked for, in order, with what the table predicts for them now.

    Raises
    ------
    UserError : the table is of another device, a profile is writing to it, or the device has no kernels of the
        precision.
    MissingKernelError : the table is not of this network.
    """
    boards = Boards.of(device)
    boards.require_tools()
    # The journal is a profile's lock on the table's file: neither may overwrite what the other has measured, nor go on
    # with what the file held before the other ended.
    with closing(Journal.beside(path, boards.describe().as_json())):
        table = load_table(path)
        require_table_of(boards, table, path)
        boards.close()  # free for others until there is something to measure
        subject = workload.traced(boards.target, boards.profile.name)
        require_kernels(subject.all_kernels, subject.name, table, heads=workload.heads)
        job = subject.job(table, path)
        drawn = job.random_plans(f"{RANDOM}{seed}", plans, seed)
        job.predict_again()
        if job.missing(drawn):
            copies, workers = boards.profile.measure.copies, workers or os.cpu_count() or 1
            with (
                scratch_folder("validate") as folder,
                compiler(boards.target, copies, folder, workers) as pool,
            ):
                reference = compile_reference(pool)
                boards.share(
                    [drawn],
                    lambda board, some: job.measure(some, board, pool, Reference(board, reference), on_progress),
                )
        save_table(table, path)
        return job.entries(drawn)
