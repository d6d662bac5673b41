from collections.abc import Callable
from typing import Any, overload

LARGEST_BLOCK: int
LARGEST_GROUP: int
MATMUL_WORKSPACE: int
NEVER: int

class Features:
    def __init__(self, *, data: int, dtype: str, row_stride: int, column_stride: int, columns: int) -> None: ...

class Matrices:
    def __init__(self, *, first: Features, batch_stride: int, rows_per_group: int) -> None: ...

class SimilarityProblem:
    def __init__(self, *, B: int, offsets: int, x: Matrices, y: Matrices | None, metric: str, gamma: float) -> None: ...

class Exclusion:
    def __init__(self, *, exclude_self: bool, group_x: int, group_y: int) -> None: ...

class NeighborsProblem:
    def __init__(
        self,
        *,
        x: Features,
        y: Features | None,
        M: int,
        N: int,
        k: int,
        metric: str,
        gamma: float,
        precision: str,
        radius: float,
        exclusion: Exclusion,
    ) -> None: ...

class Cells:
    def __init__(self, *, count: int, cell: int, num_probes: int, probes: int) -> None: ...

class SelectionGroups:
    def __init__(
        self, *, num_groups: int, offsets: int, k: int, group_key: int, picks: int, first_row: int
    ) -> None: ...

class SelectionWeights:
    def __init__(self, *, weight: int, quality: int, bonus: int) -> None: ...

class SelectionProblem:
    def __init__(
        self,
        *,
        x: Features,
        groups: SelectionGroups,
        weights: SelectionWeights,
        metric: str,
        radius: float,
        fill: str,
        seed: int,
    ) -> None: ...

class SelectionResult:
    def __init__(
        self,
        *,
        ids: int,
        gains: int,
        share: int,
        kept: int,
        value: int,
        bound: int,
        random: int,
        effective: int,
        owner: int,
    ) -> None: ...

class PairWeights:
    def __init__(self, *, weight: int, quality: int, maximum: float) -> None: ...

class LargeProblem:
    def __init__(
        self,
        *,
        candidates: Features,
        covered: Features | None,
        N: int,
        M: int,
        metric: str,
        radius: float,
        weights: PairWeights,
        is_ordered: bool,
        list_bytes: int,
        threads: int,
    ) -> None: ...

class Oracle:
    def reset(self) -> None: ...

class PairSource: ...

class Swaps:
    def __init__(
        self,
        *,
        pairs: PairSource,
        kept: int,
        count: int,
        num_fixed: int,
        N: int,
        bonus: int,
        is_open: int,
        limits: Limits,
    ) -> None: ...
    kept: list[int]
    made: int
    tried: int
    def run(self, *, most: int, progress: Callable[[float], Any] | None) -> None: ...

class PythonOracle(Oracle):
    def __init__(self, asked: Any, candidates: int) -> None: ...

class TableOracle(Oracle, PairSource):
    def __init__(
        self,
        *,
        data: int,
        dtype: str,
        shape: tuple[int, int],
        strides: tuple[int, int],
        scale: float,
        weights: PairWeights,
        threads: int,
    ) -> None: ...
    def cover(self, *, ids: int, count: int, rows: int, num_rows: int) -> int: ...
    def owners(self, *, ids: int, count: int, covered: int, owner: int) -> None: ...
    @staticmethod
    def bytes(candidates: int, covered: int) -> int: ...

class GraphOracle(Oracle, PairSource):
    def __init__(
        self,
        *,
        offsets: int,
        ids: int,
        values: int,
        shape: tuple[int, int],
        scale: float,
        has_self: bool,
        weights: PairWeights,
        threads: int,
    ) -> None: ...
    def cover(self, *, ids: int, count: int, rows: int, num_rows: int) -> int: ...

class FeaturesOracle(Oracle, PairSource):
    def __init__(self, problem: LargeProblem) -> None: ...
    bad_rows: tuple[int, int]
    def cover(self, *, ids: int, count: int, rows: int, num_rows: int) -> int: ...
    def table(self) -> TableOracle: ...
    def owners(self, *, ids: int, count: int, owner: int) -> None: ...

class Ended:
    no: Ended
    full: Ended
    dry: Ended
    enough: Ended

class Limits:
    @overload
    def __init__(self) -> None: ...
    @overload
    def __init__(
        self,
        *,
        N: int,
        k: int,
        cost: int,
        budget: int,
        is_by_ratio: bool,
        label: int,
        cap: int,
        least: int,
        classes: int,
    ) -> None: ...
    def admitted(self, *, ids: int, count: int, most: int) -> list[int]: ...

class LazyGreedy:
    def __init__(self, oracle: Oracle, *, bonus: int, is_open: int, limits: Limits) -> None: ...
    picked: int
    value: int
    covered: int
    bound: int
    def sample(self, *, seed: int, group_key: int, draws: float) -> None: ...
    def start(self, *, ids: int, count: int) -> None: ...
    def resume(self, *, ids: int, gains: int, count: int, bound: int) -> int: ...
    def follow(self, *, ids: int, count: int, k: int) -> None: ...
    def pick(
        self, *, until: int, k: int, least: int, enough: int, progress: Callable[[float], Any] | None
    ) -> Ended: ...
    def finish(self, *, k: int, is_quick: bool) -> None: ...
    def copy_picks(self, *, ids: int, gains: int) -> None: ...

class Logits:
    def __init__(
        self, *, logits: int, gradient: int, dtype: str, T: int, V: int, logits_stride: int, gradient_stride: int
    ) -> None: ...

class Targets:
    def __init__(
        self,
        *,
        targets: int,
        target_offsets: int = 0,
        ignore_index: int,
        weight: int = 0,
        uniform_weight: float = 0.0,
        entropy_weight: int = 0,
        given_lse: int = 0,
    ) -> None: ...

class LossOptions:
    def __init__(
        self,
        *,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        softcap: float = 0.0,
        scale: float = 1.0,
        classes: int = 0,
    ) -> None: ...

class RowResults:
    def __init__(self, *, nll: int = 0, weighted: int = 0, entropy: int = 0, argmax: int = 0, lse: int = 0) -> None: ...

def isa() -> str: ...
def isas() -> list[str]: ...
def hardware_threads() -> int: ...
def built_with() -> str: ...
def similarity(problem: SimilarityProblem, s: int, threads: int) -> tuple[int, int]: ...
def similarity_gradient(problem: SimilarityProblem, grad: int, dx: int, dy: int, threads: int) -> None: ...
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
def neighbors(
    problem: NeighborsProblem, ids: int, scores: int, progress: Callable[[float], Any] | None, threads: int
) -> tuple[int, int]: ...
def neighbors_in_cells(
    problem: NeighborsProblem,
    cells: Cells,
    ids: int,
    scores: int,
    progress: Callable[[float], Any] | None,
    threads: int,
) -> None: ...
def components(
    *,
    x: Features,
    N: int,
    offsets: int,
    num_groups: int,
    threshold: float,
    radius: float,
    labels: int,
    progress: Callable[[float], Any] | None,
    threads: int,
) -> int: ...
def facility_location_grouped(problem: SelectionProblem, result: SelectionResult, threads: int) -> int: ...
def cross_entropy_rows(
    logits: Logits, targets: Targets, options: LossOptions, results: RowResults, threads: int
) -> float: ...
def digest_sizes(kind: int, block: int, count: int, offsets: int, k: int) -> None: ...
def digest_rows(kind: int, block: int, count: int, offsets: int, x: int, weights: list[int]) -> None: ...
