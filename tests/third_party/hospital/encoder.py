"""A 2D encoder: a network of one's own on radiographs, or on the slices of a CT (``reader=slices``)."""

from torch import nn

from embedprior.encoders.base import EncoderCard
from embedprior.encoders.frozen import Network, seeded_build
from embedprior.encoders.pictures import HALF, PictureEncoder, random_weights
from embedprior.runs import hash_file
from embedprior.weights import find_weights, load_strictly, read_tensors


class EdgeCells(PictureEncoder):
    """One convolution and an average over 4 × 4 cells: 128 numbers."""

    name, card = "edge-cells", EncoderCard("image", 128, "", "your own file (--weights)", "Apache-2.0")

    def network(self, weights, random_init):
        model = seeded_build(
            lambda: nn.Sequential(nn.Conv2d(3, 8, 7, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten())
        )
        digest, source = random_weights()
        if not random_init:
            file = find_weights(self.name, weights, "train it")
            load_strictly(model, read_tensors(file, "Next: --weights FILE"), file.name, "EdgeCells")
            digest, source = hash_file(file), f"local:{file.name}"
        return Network(model, model, 128, *HALF, source, digest, "Apache-2.0", "4 x 4 cells")
