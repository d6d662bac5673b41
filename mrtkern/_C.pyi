from collections.abc import Callable
from typing import Any

LARGEST_GROUP: int
MATMUL_WORKSPACE: int

_Rows = tuple[int, str, int, int, int, int]  # address, type, strides of batch, row and column, rows of a matrix

def isa() -> str: ...
def isas() -> list[str]: ...
def hardware_threads() -> int: ...
def built_with() -> str: ...
def similarity(
    x: _Rows,
    y: _Rows | None,
    offsets: int,
    B: int,
    D: int,
    metric: str,
    gamma: float,
    s: int,
    threads: int,
) -> tuple[int, int]: ...
def similarity_gradient(
    x: _Rows,
    y: _Rows | None,
    offsets: int,
    B: int,
    D: int,
    metric: str,
    gamma: float,
    grad: int,
    dx: int,
    dy: int,
    threads: int,
) -> None: ...
def matmul(
    a: tuple[int, str, int, int],
    b: tuple[int, str, int, int],
    sizes: tuple[int, int, int],
    out: tuple[int, int],
    bias: int,
    adds: bool,
    is_half: bool,
    workspace: int,
    threads: int,
) -> None: ...
def add_column_sums(z: tuple[int, int], sizes: tuple[int, int], total: int, threads: int) -> None: ...
def scale(gradient: int, out: int, dtype: str, count: int, factor: int, threads: int) -> None: ...
def multiply_only(dtype: str, flops: int, threads: int) -> None: ...
def stream_pairs(
    x: tuple[int, int, int, int],
    y: tuple[int, int, int, int],
    dtype: str,
    D: int,
    metric: str,
    radius: float,
    weight: int,
    quality: int,
    maximum: float,
    best: int,
    want: str,
    t: int,
    out: int,
    threads: int,
) -> tuple[int, int, list[int], list[int], list[int]]: ...
def neighbors(
    x: tuple[int, int, int, int],
    y: tuple[int, int, int, int] | None,
    dtype: str,
    D: int,
    k: int,
    metric: str,
    precision: str,
    radius: float,
    exclude_self: bool,
    group_x: int,
    group_y: int,
    ids: int,
    scores: int,
    progress: Callable[[float], Any] | None,
    threads: int,
) -> tuple[int, int]: ...
def components(
    x: tuple[int, int, int, int],
    dtype: str,
    D: int,
    threshold: float,
    radius: float,
    labels: int,
    progress: Callable[[float], Any] | None,
    threads: int,
) -> int: ...
def facility_location_grouped(arguments: tuple[Any, ...], out: list[int], threads: int) -> int: ...
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
    classes: int,
    out: list[int],
    given_lse: int,
    threads: int,
) -> float: ...
def digest_sizes(kind: int, block: int, count: int, offsets: int, k: int) -> None: ...
def digest_rows(kind: int, block: int, count: int, offsets: int, x: int, weights: list[int]) -> None: ...
