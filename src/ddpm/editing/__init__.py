"""Edit images with a trained model: SDEdit, interpolation between latents, inversion.

editor = ddpm.editing.Editor(model, seed=0)
ddpm.editing.sdedit(editor, images, strength=0.3)
"""

from ddpm.editing.batches import Editor
from ddpm.editing.interpolation import coarse_to_fine, interpolate
from ddpm.editing.inversion import RoundTrip, generate, invert, reconstructions, round_trip, translate
from ddpm.editing.sdedit import CurvePoint, fidelity_curve, sdedit, surprise

__all__ = [
    "CurvePoint",
    "Editor",
    "RoundTrip",
    "coarse_to_fine",
    "fidelity_curve",
    "generate",
    "interpolate",
    "invert",
    "reconstructions",
    "round_trip",
    "sdedit",
    "surprise",
    "translate",
]
