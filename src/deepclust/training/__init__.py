"""The loops: pretraining of the autoencoder, and self-training on KL(P||Q).

Each loop is a generator. It yields an :class:`Event` after every chunk of steps, and in
self-training at every refresh of P before any further step; the caller decides what to do about it,
including when to stop. A :class:`State` is all that is needed to go on: batch order and dropout
masks depend on the seed and the step alone.
"""

from .loop import BatchOrder, Event, State, Target, minimise
from .pretraining import LayerPair, layer_pairs, pretrain, pretrain_layer, reconstruction_error
from .schedules import Hyper, Schedule, constant, one_cycle, sgd, step_decay
from .self_training import REFRESH_BLOCK, self_train

__all__ = [
    "REFRESH_BLOCK",
    "BatchOrder",
    "Event",
    "Hyper",
    "LayerPair",
    "Schedule",
    "State",
    "Target",
    "constant",
    "layer_pairs",
    "minimise",
    "one_cycle",
    "pretrain",
    "pretrain_layer",
    "reconstruction_error",
    "self_train",
    "sgd",
    "step_decay",
]
