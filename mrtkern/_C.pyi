import numpy
import numpy.typing

LARGEST_GROUP: int

def isa() -> str: ...
def isas() -> list[str]: ...
def hardware_threads() -> int: ...
def built_with() -> str: ...
def similarity_ragged(
    x: int,
    dtype: str,
    row_stride: int,
    column_stride: int,
    offsets: int,
    num_groups: int,
    D: int,
    metric: str,
    out: int,
    threads: int,
) -> int: ...
def facility_location_grouped(
    x: int,
    dtype: str,
    row_stride: int,
    column_stride: int,
    D: int,
    offsets: int,
    num_groups: int,
    k: int,
    weight: int,
    quality: int,
    bonus: int,
    given: int,
    group_key: int,
    metric: str,
    radius: float,
    fill: str,
    seed: int,
    first_row: int,
    out: list[int],
    threads: int,
) -> int: ...
def cross_entropy_rows(
    logits: int,
    gradient: int,
    dtype: str,
    T: int,
    V: int,
    logits_stride: int,
    gradient_stride: int,
    targets: int,
    target_offsets: int,
    ignore_index: int,
    weight: int,
    uniform_weight: float,
    entropy_weight: int,
    label_smoothing: float,
    z_loss: float,
    softcap: float,
    scale: float,
    out: list[int],
    given_lse: int,
    threads: int,
) -> float: ...
def fresh_pages(bytes: int) -> numpy.typing.NDArray[numpy.uint8]: ...
