"""The names of the corruptions, as the published files spell them, and their categories."""

from __future__ import annotations

SEVERITIES = range(1, 6)

# Hendrycks & Dietterich 2019, Figure 1: these fifteen are averaged.
MAIN = (
    *("gaussian_noise", "shot_noise", "impulse_noise"),
    *("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    *("snow", "frost", "fog", "brightness"),
    *("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
)
# Ibid., Appendix B: one more of each category, for choices that may not look at the fifteen.
EXTRA = ("speckle_noise", "gaussian_blur", "spatter", "saturate")

CATEGORIES: dict[str, tuple[str, ...]] = {
    "noise": (*MAIN[:3], "speckle_noise"),
    "blur": (*MAIN[3:7], "gaussian_blur"),
    "weather": (*MAIN[7:11], "spatter"),
    "digital": (*MAIN[11:], "saturate"),
}
