"""Model folders: Diffusers' pipeline format, the Hub, and conversion of other formats."""

from ddpm.interop.diffusers import LoadedParts, load_folder, save_folder
from ddpm.interop.layouts import model_folder

__all__ = ["LoadedParts", "load_folder", "model_folder", "save_folder"]
