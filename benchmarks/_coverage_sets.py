"""The networks of the coverage benchmark: how each is built, and what inputs it takes."""

from __future__ import annotations

import _deployed_set as deployed
import _transformers_set as transformers
from _deployed_set import Deployed
from torch import nn

# Images are this large unless a network needs more.
SIDE = 64
SEGMENTATION = ("fcn_resnet50", "deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large")
SSD_BACKBONE = "ssdlite320_mobilenet_v3_large.backbone"
# fmt: off
TIMM = [
    "bat_resnext26ts", "botnet26t_256", "convmixer_768_32", "convnext_atto", "cspdarknet53", "cspresnet50",
    "cspresnext50", "densenet121", "dla34", "dla60_res2net", "dpn48b", "eca_nfnet_l0", "ecaresnet26t",
    "edgenext_xx_small", "efficientnet_b0", "efficientnet_b0_gn", "efficientvit_b0", "efficientvit_m0",
    "ese_vovnet19b_dw", "fastvit_t8", "fbnetv3_b", "focalnet_tiny_srf", "gcresnet33ts", "ghostnet_100",
    "ghostnetv2_100", "halonet26t", "hardcorenas_a", "hgnetv2_b0", "hrnet_w18_small", "inception_next_atto",
    "inception_resnet_v2", "inception_v4", "lambda_resnet26t", "lcnet_050", "mambaout_femto", "mixnet_s",
    "mobilenetv3_small_050", "mobilenetv4_conv_small", "mobilenetv4_hybrid_medium", "mobileone_s0", "nextvit_small",
    "nf_regnet_b0", "nfnet_l0", "poolformer_s12", "rdnet_tiny", "regnetx_002", "repghostnet_050", "repvgg_a0",
    "repvit_m0_9", "res2net50_26w_4s", "res2next50", "resnest14d", "resnetblur18", "resnetrs50", "resnetv2_50",
    "resnetv2_50d_gn", "resnetv2_50x1_bit", "rexnet_100", "rexnetr_100", "selecsls42", "seresnet18", "shvit_s1",
    "skresnet18", "spnasnet_100", "starnet_s050", "swiftformer_xs", "tinynet_e", "tresnet_l", "visformer_tiny",
    "vovnet39a", "xception41",
]
# fmt: on
# Networks that divide their image into windows or patches, or shrink it more often than 64 pixels allow.
SIDES = {
    "torchvision": {
        "alexnet": 224,
        "googlenet": 96,
        "inception_v3": 96,
        "maxvit_t": 224,
        **dict.fromkeys([f"vgg{depth}{norm}" for depth in (11, 13, 16, 19) for norm in ("", "_bn")], 224),
        **dict.fromkeys(["vit_b_16", "vit_b_32", "vit_h_14", "vit_l_16", "vit_l_32"], 224),
    },
    "timm": {
        "bat_resnext26ts": 256,
        "botnet26t_256": 256,
        "efficientvit_m0": 224,
        "halonet26t": 256,
        "inception_resnet_v2": 96,
        "inception_v4": 96,
        "lambda_resnet26t": 256,
        "visformer_tiny": 224,
    },
}


def _torchvision() -> list[str]:
    import torchvision

    return [*torchvision.models.list_models(torchvision.models), *SEGMENTATION, SSD_BACKBONE]


NAMED = {"deployed": deployed.NETWORKS, "transformers": transformers.NETWORKS}
SETS = {"torchvision": _torchvision(), "timm": TIMM, **{name: list(networks) for name, networks in NAMED.items()}}
QUICK = {"torchvision": "squeezenet1_1", "timm": "lcnet_050", "deployed": "tc_resnet8", "transformers": "vit"}


def network(kind: str, name: str) -> Deployed:
    """A network of a set."""
    if kind in NAMED:
        return NAMED[kind][name]
    side = SIDES[kind].get(name, SIDE)
    return Deployed(lambda: _built(kind, name), ((3, side, side),), kind)


def _built(kind: str, name: str) -> nn.Module:
    """An untrained network of torchvision's or timm's."""
    import torchvision

    model: nn.Module
    if kind == "timm":
        import timm

        model = timm.create_model(name, pretrained=False)
    elif name == SSD_BACKBONE:
        detector = torchvision.models.get_model(name.partition(".")[0], weights=None, weights_backbone=None)
        model = detector.backbone
    else:
        own = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        own |= {"weights_backbone": None} if name in SEGMENTATION else {}
        model = torchvision.models.get_model(name, weights=None, **own)
    return model
