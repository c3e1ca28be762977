"""TV-L1 optical flow: the algorithm's parameters.

The algorithm minimises, over a flow u, the integral of |grad u1| + |grad u2| + lambda |rho(u)|,
where rho is the difference in brightness between the first frame and the second one read at x + u.
From the coarsest scale of a pyramid to the finest, and several times at each, the second frame is
warped by the flow so far and rho linearised; then a thresholding step that lowers |rho| and a step
of Chambolle's projection that lowers the total variation take turns until the flow stands still.

    C. Zach, T. Pock, H. Bischof: A duality based approach for realtime TV-L1 optical flow.
        Pattern Recognition (DAGM), 2007.
    J. Sánchez Pérez, E. Meinhardt-Llopis, G. Facciolo: TV-L1 optical flow estimation. Image
        Processing On Line 3, 2013. https://doi.org/10.5201/ipol.2013.26
    OpenCV's cv2.optflow.DualTVL1OpticalFlow, whose defaults, 5x5 median and stopping rule we take.
"""

import math
from dataclasses import dataclass, fields

from i3d.errors import UsageError


@dataclass(frozen=True)
class TVL1:
    """Parameters of TV-L1; the defaults are those of OpenCV's DualTVL1.

    Not offered: OpenCV's gamma (illumination changes, 0 by default) and its initial flow.
    """

    tau: float = 0.25  # time step of the dual variables
    lambda_: float = 0.15  # weight of the brightness difference; smaller is smoother
    theta: float = 0.3  # how closely thresholding and smoothing are tied
    scales: int = 5  # of the pyramid, fewer where a side would fall under 16 pixels
    scale_step: float = 0.8  # from one scale to the next
    warps: int = 5  # at each scale
    epsilon: float = 0.01  # pixels: stop when the root mean square change of the flow is below
    inner_iterations: int = 30  # between two medians, at most
    outer_iterations: int = 10  # medians in one warp, at most

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not (math.isfinite(value) and value > 0):
                raise UsageError(f"TVL1({field.name}={value}): must be above 0")
        if self.scale_step >= 1:
            raise UsageError(f"TVL1(scale_step={self.scale_step}): must be below 1")
