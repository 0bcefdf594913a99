"""Edit images with a trained model: SDEdit, interpolation between latents, inversion.

editor = ddpm.editing.Editor(model, seed=0)
ddpm.editing.sdedit(editor, images, strength=0.3)
"""

from ddpm.editing.editor import CurvePoint, Editor, coarse_to_fine, denoising_loss, fidelity_curve, interpolate, sdedit
from ddpm.editing.inversion import RoundTrip, generate, invert, reconstructions, round_trip, translate

__all__ = [
    "CurvePoint",
    "Editor",
    "RoundTrip",
    "coarse_to_fine",
    "denoising_loss",
    "fidelity_curve",
    "generate",
    "interpolate",
    "invert",
    "reconstructions",
    "round_trip",
    "sdedit",
    "translate",
]
