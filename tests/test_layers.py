"""The core needs no extra. (That layers import downwards only is `lint-imports`, in `make check`.)"""

import subprocess
import sys

EXTRAS = ["torchvision", "diffusers", "datasets", "matplotlib", "gradio", "imageio", "torch_fidelity", "deepinv"]


def test_core_imports_without_extras():
    blocked = "; ".join(f"sys.modules[{name!r}] = None" for name in EXTRAS)
    code = f"import sys; {blocked}; import ddpm, ddpm.cli; assert ddpm.load('digits').num_classes == 10"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
