"""Plots for papers, and animations of the forward and the reverse process."""

from typing import TYPE_CHECKING

from ddpm.common.lazy import lazy_exports

if TYPE_CHECKING:
    from ddpm.plotting.animation import Frame as Frame
    from ddpm.plotting.animation import Trajectory as Trajectory
    from ddpm.plotting.animation import check_animation as check_animation
    from ddpm.plotting.plots import Curve as Curve
    from ddpm.plotting.plots import check_figure as check_figure
    from ddpm.plotting.plots import plot_images as plot_images
    from ddpm.plotting.plots import plot_loss as plot_loss
    from ddpm.plotting.plots import plot_quality as plot_quality
    from ddpm.plotting.plots import plot_schedules as plot_schedules
    from ddpm.plotting.plots import save_figure as save_figure
    from ddpm.plotting.trace import trace_diffusers as trace_diffusers
    from ddpm.plotting.trace import trace_forward as trace_forward
    from ddpm.plotting.trace import trace_model as trace_model

__getattr__, __dir__, __all__ = lazy_exports(__name__)
