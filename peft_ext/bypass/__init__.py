"""Which linear layers a parent computes with by reading their `weight`, past any adapter: in its own forward pass it
says `F.linear(x, self.out_proj.weight)` where it could say `self.out_proj(x)`.

The rule is what the parent's source says, not a list of classes: the forward pass, and the methods and functions it
calls, are walked with the objects that the parent holds, so that `if self.pretraining_tp > 1` is decided as the model
would. What depends on an argument, on the mode or on the device can happen, and counts. A read for its shape, dtype or
presence does not count, nor does clamping in place.

    layers.py       the answer for a model: leave a layer out, refuse it, or warn that nobody knows
    walk.py         functions and statements
    expressions.py  expressions, and the weights that they read
    values.py       what an expression may be, as far as it is known
"""

from peft_ext.bypass.layers import BypassedLayers

__all__ = ["BypassedLayers"]
