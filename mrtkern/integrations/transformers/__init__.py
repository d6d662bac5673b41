"""transformers: `patch` a model, and a `Trainer` in which a split step equals one batch.

patch.py     what stands in for a model's loss and, in training, for its head: no [T, V] logits
shape.py     whether a model's forward has the shape that this needs, found out by letting it run without its layers
trainer.py   counts of a whole step before its first forward, sums over a whole evaluation
"""

from mrtkern.integrations.transformers.patch import patch, unpatch
from mrtkern.integrations.transformers.trainer import Trainer

__all__ = ["Trainer", "patch", "unpatch"]
