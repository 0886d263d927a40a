"""Load Pose, Pose-to-Mask and Render Pose: people as keypoints, as masks and as skeleton pictures."""


from __future__ import annotations

import torch

from ..kbdm_core.errors import PoseError
from ..kbdm_core.keypoints import MAX_SIDE, Pose, parse_pose_json, parse_pose_keypoint, to_pose_keypoint
from ..kbdm_core.pose_mask import dilate, mask_from_picture, mask_from_poses, resize_mask
from ..kbdm_core.skeleton import render_humansd, render_openpose

STYLES = {"openpose": render_openpose, "humansd": render_humansd}

EXAMPLE_JSON = """\
{"canvas_width": 512, "canvas_height": 512, "people": [{"pose_keypoints_2d": [
 256,96,1, 256,150,1, 210,152,1, 170,205,1, 140,160,1, 302,152,1, 342,205,1, 372,160,1, 228,285,1,
 224,375,1, 222,465,1, 284,285,1, 288,375,1, 290,465,1, 246,86,1, 266,86,1, 232,92,1, 280,92,1]}]}"""

JSON_TOOLTIP = "The text of an OpenPose or COCO keypoints file: bodies of 17, 18 or 25 joints, in pixels or 0 to 1. This one is an example."
KEYPOINT_TOOLTIP = "From Load Pose, or an OpenPose or DWPose preprocessor."
THRESHOLD_TOOLTIP = "Picture only: a pixel belongs to a person if red, green or blue is brighter than this."
DILATION_TOOLTIP = (
    "Side of the square that thickens the mask, in pixels of the mask. 1 = none, 0 = 23/512 of the shorter side. "
    "It is odd: an even number counts as the next odd one."
)
STYLE_TOOLTIP = "openpose: for ControlNet OpenPose models and KB-DM adapters. humansd: as HumanSD and Stable-Pose draw, at most 10 people."


def _side(tooltip: str) -> tuple[str, dict]:
    return ("INT", {"default": 0, "min": 0, "max": MAX_SIDE, "step": 8, "tooltip": tooltip})


class KBDMLoadPose:
    """A pose pasted as text."""

    CATEGORY = "KB-DM"
    FUNCTION = "load"
    RETURN_TYPES = ("POSE_KEYPOINT",)
    RETURN_NAMES = ("pose_keypoint",)
    OUTPUT_TOOLTIPS = ("The people in pixels, one frame per image, for Pose-to-Mask, Render Pose and the nodes of other pose packs.",)
    DESCRIPTION = "Reads people from OpenPose JSON, COCO keypoints JSON or a saved POSE_KEYPOINT."
    SEARCH_ALIASES = ["kb-dmgen", "openpose json", "coco keypoints", "load keypoints", "skeleton"]

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "json": ("STRING", {"multiline": True, "default": EXAMPLE_JSON, "tooltip": JSON_TOOLTIP}),
                "person": ("INT", {"default": -1, "min": -1, "max": 999, "tooltip": "-1 = all, else that person of each frame, from 0."}),
                "width": _side("Width to scale the pose to, in pixels; 0 = as in the JSON. Needed where the JSON tells no canvas size."),
                "height": _side("Height to scale the pose to, in pixels; 0 = as in the JSON. Needed where the JSON tells no canvas size."),
            }
        }

    def load(self, json, person, width, height):
        poses = parse_pose_json(json, width, height)
        if person >= 0:
            most = max(len(pose.people) for pose in poses)
            if person >= most:
                raise PoseError(f"person {person} was asked for, but the pose holds {most} (counted from 0); -1 takes all of them.")
            poses = [pose.only(person) for pose in poses]
        return (to_pose_keypoint(poses),)


class KBDMPoseToMask:
    """Where the people are."""

    CATEGORY = "KB-DM"
    FUNCTION = "make_masks"
    RETURN_TYPES = ("MASK", "MASK")
    RETURN_NAMES = ("mask", "person_masks")
    OUTPUT_TOOLTIPS = (
        "One mask per image: all its people.",
        "One mask per person, frame after frame. A picture without keypoints cannot tell people apart: one mask per image.",
    )
    DESCRIPTION = (
        "Turns keypoints, a skeleton picture on black, or both (their union) into masks of the people, for Dynamic Mask Attention Patch "
        "and KB-DM Adapter Apply. Without people the mask is empty."
    )
    SEARCH_ALIASES = ["kb-dmgen", "openpose mask", "skeleton mask", "keypoints to mask", "person mask"]

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "threshold": ("FLOAT", {"default": 0.1, "min": 0.0, "max": 1.0, "step": 0.01, "tooltip": THRESHOLD_TOOLTIP}),
                "dilation": ("INT", {"default": 0, "min": 0, "max": 511, "tooltip": DILATION_TOOLTIP}),
                "width": _side("Width of the mask in pixels; 0 = as the picture, else as the pose."),
                "height": _side("Height of the mask in pixels; 0 = as the picture, else as the pose."),
            },
            "optional": {
                "image": ("IMAGE", {"tooltip": "Skeleton pictures on black (Render Pose, DWPose, OpenPose ...), not photographs."}),
                "pose_keypoint": ("POSE_KEYPOINT", {"tooltip": KEYPOINT_TOOLTIP + " Scaled to the picture's size if both are connected."}),
            },
        }

    def make_masks(self, threshold, dilation, width, height, image=None, pose_keypoint=None):
        if image is None and pose_keypoint is None:
            raise PoseError(
                "Pose-to-Mask has no input: connect a skeleton picture to image (Render Pose, DWPose ...), or keypoints to pose_keypoint "
                "(Load Pose, or the POSE_KEYPOINT of an OpenPose or DWPose preprocessor)."
            )
        pictures = None
        if image is not None:
            pictures = mask_from_picture(image, threshold, dilation=1)
            width, height = width or pictures.shape[2], height or pictures.shape[1]
            pictures = dilate(resize_mask(pictures, width, height), dilation)
        if pose_keypoint is None:
            return (pictures, pictures)
        people = [mask_from_poses(pose, pose.width, pose.height, dilation) for pose in _frames(pose_keypoint, width, height)]
        person_masks = torch.cat(people)
        empty = torch.zeros(1, *people[0].shape[1:])
        masks = torch.stack([torch.cat([empty, masks]).amax(dim=0) for masks in people])
        if pictures is not None:
            masks = _union(masks.to(pictures.device), pictures)
        return (masks, person_masks if len(person_masks) else empty)


class KBDMRenderPose:
    """Keypoints as a picture."""

    CATEGORY = "KB-DM"
    FUNCTION = "render"
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("image",)
    OUTPUT_TOOLTIPS = ("One skeleton picture on black per frame.",)
    DESCRIPTION = "Draws people as a skeleton picture, in OpenPose's style (ControlNet models) or in HumanSD's (HumanSD, Stable-Pose)."
    SEARCH_ALIASES = ["kb-dmgen", "draw openpose", "skeleton image", "keypoints to image", "humansd"]

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "pose_keypoint": ("POSE_KEYPOINT", {"tooltip": KEYPOINT_TOOLTIP}),
                "width": _side("Width of the picture in pixels; 0 = as the pose (its first frame)."),
                "height": _side("Height of the picture in pixels; 0 = as the pose (its first frame)."),
                "style": (list(STYLES), {"default": "openpose", "tooltip": STYLE_TOOLTIP}),
            }
        }

    def render(self, pose_keypoint, width, height, style):
        return (torch.stack([STYLES[style](pose, pose.width, pose.height) for pose in _frames(pose_keypoint, width, height)]),)


def _frames(pose_keypoint: object, width: int, height: int) -> list[Pose]:
    """All frames at one size, as a batch needs: the one asked for, else the first frame's."""
    poses = parse_pose_keypoint(pose_keypoint, width, height)
    return [pose.scaled(poses[0].width, poses[0].height) for pose in poses]


def _union(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Union per image of two batches of masks; the shorter batch starts again from its beginning."""
    n = max(len(a), len(b))
    return torch.maximum(*(masks[torch.arange(n) % len(masks)] for masks in (a, b)))
