"""Edit images with a trained model: SDEdit, interpolation between latents, inversion.

editor = ddpm.editing.Editor(model, seed=0)
ddpm.editing.sdedit(editor, images, strength=0.3)
"""

from typing import TYPE_CHECKING

from ddpm.common.lazy import lazy_exports

if TYPE_CHECKING:
    from ddpm.editing.editor import CurvePoint as CurvePoint
    from ddpm.editing.editor import Editor as Editor
    from ddpm.editing.editor import coarse_to_fine as coarse_to_fine
    from ddpm.editing.editor import denoising_loss as denoising_loss
    from ddpm.editing.editor import fidelity_curve as fidelity_curve
    from ddpm.editing.editor import interpolate as interpolate
    from ddpm.editing.editor import sdedit as sdedit
    from ddpm.editing.inversion import RoundTrip as RoundTrip
    from ddpm.editing.inversion import generate as generate
    from ddpm.editing.inversion import invert as invert
    from ddpm.editing.inversion import reconstructions as reconstructions
    from ddpm.editing.inversion import round_trip as round_trip
    from ddpm.editing.inversion import translate as translate

__getattr__, __dir__, __all__ = lazy_exports(__name__)
