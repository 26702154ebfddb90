"""Names and summaries of the built-in architectures, importable without torch."""

CIFAR_DEPTHS = (20, 32, 44, 56, 110)
RESNETS = (  # torchvision's
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d"),
    *("resnext101_32x8d", "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2"),
)
SMALL_IMAGE = 64  # pixels per side up to which torchvision's ResNets get a stem for small images

SUMMARIES = {
    **{
        f"cifar_resnet{depth}": f"He's CIFAR ResNet of {depth} layers; options width=16, option=A "
        "or B"
        for depth in CIFAR_DEPTHS
    },
    "isoresnet": "ResNet of one width and resolution, so one feature space; options width=32, "
    "depth=8, stride=1",
    "isoplain": "isoresnet without shortcuts",
    "mlp": "plain MLP; options width=128, depth=6, batch_norm=true",
    "resmlp": "residual MLP; options width=128, depth=6, hidden=width, batch_norm=true",
    "vgg": "small plain CNN in three stages; options width=32, depth=6",
    "vit": "small vision transformer; options width=64, depth=6, heads, hidden, patch",
    **{
        f"torchvision:{name}": f"torchvision's {name}; 3 x 3 stem without max-pool for images up "
        f"to {SMALL_IMAGE} pixels"
        for name in RESNETS
    },
}
