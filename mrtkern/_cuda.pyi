"""The CUDA kernels, csrc/bindings_cuda.cpp. Addresses are of device memory that the caller keeps alive."""

LARGEST_GROUP: int

class Features:
    def __init__(self, *, data: int, dtype: str, row_stride: int, column_stride: int, columns: int) -> None: ...

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

class CudaStream:
    def __init__(self, *, device: int, address: int) -> None: ...

class DeviceScratch:
    def __init__(self, *, slots: int, bad_row: int, workspace: int) -> None: ...

def device_count() -> int: ...
def archs() -> list[int]: ...
def runtime_version() -> int: ...
def facility_location_workspace(num_groups: int, largest: int, D: int, device: int) -> int: ...
def facility_location_grouped(
    problem: SelectionProblem, result: SelectionResult, scratch: DeviceScratch, largest: int, stream: CudaStream
) -> None: ...
