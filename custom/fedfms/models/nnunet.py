"""nnU-Net's 2D network (MONAI's DynUNet) with deep supervision, built from a plan."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fedfms.errors import StudyError
from fedfms.models.conv import ConvModel, mask_size
from fedfms.models.nnunet_plan import Plan, plan_at
from fedfms.rng import seeded
from fedfms.study import ModelSpec

_MIN_SD = 1e-8  # of an image, as in nnU-Net
_UNSUPERVISED = 2  # the two lowest resolutions have no loss


class NNUNet(ConvModel):
    """Plain convolutions, instance norm and leaky ReLU; each channel of an image is normalised to mean 0 and s.d. 1.

    In training mode the logits are (B, K, C, mask_px, mask_px), K from the full resolution down, all upsampled to it:
    of n stages all but the two lowest, so K = n - 2. Each has its own head.
    """

    family = "nnunet"
    head_names = ("output_block.", "deep_supervision_heads.")
    decoder_names = ("upsamples.",)

    def __init__(self, spec: ModelSpec, n_structures: int, plan: Plan, max_mask_px: int) -> None:
        mask_px = mask_size(plan.input_px, max_mask_px)
        super().__init__(spec.backbone, input_px=plan.input_px, mask_px=mask_px, n_structures=n_structures)
        extra = len(plan.strides) - _UNSUPERVISED - 1
        # Imported here because it loads all of MONAI's networks.
        from monai.networks.nets import DynUNet

        self.net = DynUNet(
            spatial_dims=2, in_channels=3, out_channels=n_structures,
            kernel_size=[(k, k) for k in plan.kernels], strides=[(s, s) for s in plan.strides],
            upsample_kernel_size=[(s, s) for s in plan.strides[1:]], filters=list(plan.features),
            norm_name=("instance", {"affine": True}), act_name=("leakyrelu", {"inplace": True, "negative_slope": 0.01}),
            deep_supervision=extra > 0, deep_supr_num=max(extra, 1),
        )  # fmt: skip

    def prefix(self, images: Tensor) -> Tensor:
        """Images (B, 3, S, S), each channel normalised to mean 0 and s.d. 1."""
        centred = super().prefix(images) - images.mean((2, 3), keepdim=True)
        return centred / images.std((2, 3), keepdim=True, correction=0).clamp_min(_MIN_SD)


def build_nnunet(
    spec: ModelSpec, n_structures: int, *, adapters: bool, seed: int, blank: bool, plan: Mapping[str, Any],
    base_features: int = 32, max_features: int = 512, max_mask_px: int = 256,
) -> NNUNet:  # fmt: skip
    """The network of `plan`, or without one, of the plan for `spec.input_px` alone; `adapters`, `blank` do not apply.

    Raises:
        StudyError: an invalid plan, or one for another input size.
    """
    if plan:
        layout = Plan.from_dict(plan)
    else:
        layout = plan_at(spec.input_px, n_structures, base_features=base_features, max_features=max_features)
    if layout.input_px != spec.input_px:
        raise StudyError(
            f"the plan is for {layout.input_px} px, the study has {spec.input_px}", where="model",
            do=f"set model.input_px to {layout.input_px}",
        )  # fmt: skip
    with seeded(seed, "nnunet"):
        return NNUNet(spec, n_structures, layout, max_mask_px)
