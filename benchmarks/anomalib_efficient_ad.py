"""anomalib's EfficientAD-S with random weights as ONNX; `speed.py` times it beside ours. Run where anomalib is.

python anomalib_efficient_ad.py FILE.onnx
"""

import sys
from importlib.metadata import version

import torch
from anomalib.models.image.efficient_ad.torch_model import EfficientAdModel, EfficientAdModelSize


def main() -> None:
    """Write the network that judges an image of 256 by 256, normalised within it, as anomalib deploys it."""
    torch.manual_seed(0)
    model = EfficientAdModel(teacher_out_channels=384, model_size=EfficientAdModelSize.S).eval()
    image = torch.rand(1, 3, 256, 256)
    torch.onnx.export(model, (image,), sys.argv[1], input_names=["image"], opset_version=17, dynamo=False)
    print(f"anomalib {version('anomalib')}")


if __name__ == "__main__":
    main()
