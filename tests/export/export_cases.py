"""The model that the tests of exports share."""

import torch
from conftest import tiny_model

from ddpm.model import Model


def exportable_model() -> Model:
    """8×8 grey images of three classes and a null class, with weights that half precision holds exactly."""
    model = tiny_model(classes=3, prediction="v")
    model.class_names = ["cat", "</script>", "dog, wet"]
    with torch.no_grad():
        model.network.class_embedding.weight.mul_(30)  # or the class would be lost in so small a network
        model.network.conv_out.weight.mul_(5)
        for parameter in model.network.parameters():
            parameter.copy_(parameter.half().float())
    return model
