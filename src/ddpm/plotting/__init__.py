"""Plots for papers, and animations of the forward and the reverse process."""

from ddpm.plotting.animation import Frame, Trajectory, check_animation
from ddpm.plotting.plots import Curve, check_figure, plot_images, plot_loss, plot_quality, plot_schedules, save_figure
from ddpm.plotting.trace import trace_diffusers, trace_forward, trace_model

__all__ = [
    "Curve",
    "Frame",
    "Trajectory",
    "check_animation",
    "check_figure",
    "plot_images",
    "plot_loss",
    "plot_quality",
    "plot_schedules",
    "save_figure",
    "trace_diffusers",
    "trace_forward",
    "trace_model",
]
