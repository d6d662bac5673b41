"""mrtkern: keep K of the N responses of every prompt, exactly and reproducibly.

Who calls whom, top to bottom:

    cli/               the `mrtkern` command: info, verify, select, dedup, plan, weights
    integrations/      the trainers that people use: each module needs its library
    digest/            seeded problems and the hash of what is selected from them
    distributed/       vocabulary.py: losses over classes that are split among ranks
    loss.py            token weights of five normalisations, the module
    select.py          seven strategies per prompt        budget.py   variance components, the best K
    objectives/        greedy on other objectives than facility location, in tensor operations
    ids.py             prompts by their ids, and the keys that stand for them
    ops/<op>/op.py     public function, checks that need no data (arguments.py where others share them), gradient
    _operators.py      registers what op.py runs with torch.library
    _dispatch.py       chooses the backend (the only place)
        │              an explicit backend= is obeyed or refused; otherwise the first that can, in this order:
        ├─ cuda        ops/<op>/cuda.py → mrtkern._cuda, csrc/*.cu       a tensor on an NVIDIA GPU
        ├─ triton      ops/<op>/triton → kernels in Python               a tensor on a GPU
        ├─ cpu         ops/<op>/cpu.py → mrtkern._C, csrc/*.cpp          a tensor on the CPU
        └─ reference   ops/<op>/reference.py, plain torch                anything: it is the definition
    _triton/           targets, launch tables, tiles of products and rounded rows that Triton's backends share
    _device.py         memory, capability, waiting, addresses           _cases.py   what tests and benchmarks share
    _progress.py       who wants to know how far a long call is            _groups.py   sums over what shares an id
    _sums.py           sums of many numbers, the same bits for every number of threads
    lattice.py         the int16 quantiser, _random.py the counting hash: definitions that every backend repeats
    csrc/              bindings.cpp → <op>/cpu.cpp → <op>_kernels() → isa/ (four instruction sets) → tile/, <op>/
"""

from mrtkern.budget import allocate_k, optimal_k, variance_components
from mrtkern.distributed.vocabulary import (
    vocabulary_parallel_cross_entropy,
    vocabulary_parallel_linear_cross_entropy,
)
from mrtkern.ids import group
from mrtkern.loss import MultiResponseCrossEntropyLoss, response_weights
from mrtkern.objectives.op import maximize
from mrtkern.ops.cross_entropy.details import LossDetails
from mrtkern.ops.cross_entropy.op import cross_entropy
from mrtkern.ops.facility_location.explain import Comparison, Explanation
from mrtkern.ops.facility_location.op import facility_location
from mrtkern.ops.facility_location.selection import Selection
from mrtkern.ops.facility_location.stages import select_stages
from mrtkern.ops.linear_cross_entropy.log_prob import linear_log_prob
from mrtkern.ops.linear_cross_entropy.op import linear_cross_entropy
from mrtkern.ops.neighbors.deduplicate import Duplicates, deduplicate
from mrtkern.ops.neighbors.lists import Neighbors
from mrtkern.ops.neighbors.op import neighbors
from mrtkern.ops.similarity.op import similarity
from mrtkern.select import select_responses

__version__ = "0.1.0"

__all__ = [
    "Comparison",
    "Duplicates",
    "Explanation",
    "LossDetails",
    "MultiResponseCrossEntropyLoss",
    "Neighbors",
    "Selection",
    "__version__",
    "allocate_k",
    "cross_entropy",
    "deduplicate",
    "facility_location",
    "group",
    "linear_cross_entropy",
    "linear_log_prob",
    "maximize",
    "neighbors",
    "optimal_k",
    "response_weights",
    "select_responses",
    "select_stages",
    "similarity",
    "variance_components",
    "vocabulary_parallel_cross_entropy",
    "vocabulary_parallel_linear_cross_entropy",
]
