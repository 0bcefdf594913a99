"""Model folders: Diffusers' pipeline format, the Hub, and conversion of other formats."""

from typing import TYPE_CHECKING

from ddpm.common.lazy import lazy_exports

if TYPE_CHECKING:
    from ddpm.interop.diffusers import LoadedParts as LoadedParts
    from ddpm.interop.diffusers import load_folder as load_folder
    from ddpm.interop.diffusers import save_folder as save_folder
    from ddpm.interop.layouts import model_folder as model_folder

__getattr__, __dir__, __all__ = lazy_exports(__name__)
