"""A graph in ComfyUI's API format that draws what the trainer draws: the same prompt, pose, seed, sampler and files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from kbdm_core.keypoints import Pose

Graph = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Files:
    """Names of the files as ComfyUI's loaders list them. checkpoint None = the miniature, which has a loader of its own."""

    checkpoint: str | None
    adapter: str
    knowledge_base: str | None = None
    controlnet: str | None = None


def workflow(files: Files, prompt: str, decompose: str, encoded: str, pose: Pose, seed: int, steps: int, scale: float) -> Graph:
    """The graph: base, prompts, KB query, pose, adapter, DDIM, picture. Its size is the pose's canvas.

    decompose: how the prompt asks the knowledge base; encoded: what the text encoder reads of it.
    """
    graph: Graph = {}

    def node(kind: str, title: str, **inputs: Any) -> str:
        number = str(len(graph) + 1)
        graph[number] = {"class_type": kind, "inputs": inputs, "_meta": {"title": title}}
        return number

    if files.checkpoint is None:
        base = node("KBDMLoadMini", "Load Mini Model")
    else:
        base = node("CheckpointLoaderSimple", "Load Checkpoint", ckpt_name=files.checkpoint)
    positive = [node("CLIPTextEncode", "Prompt", text=literal(encoded), clip=[base, 1]), 0]
    negative = [node("CLIPTextEncode", "Negative prompt", text="", clip=[base, 1]), 0]
    loaded = node("KBDMLoadPose", "Load Pose", json=pose_json(pose), person=-1, width=pose.width, height=pose.height)
    picture = node("KBDMRenderPose", "Render Pose", pose_keypoint=[loaded, 0], width=pose.width, height=pose.height, style="openpose")
    optional: dict[str, Any] = {"pose_image": [picture, 0]}
    if files.knowledge_base is not None:
        knowledge = node("KBDMLoadKnowledgeBase", "Load Knowledge Base", knowledge_base_name=files.knowledge_base)
        query = {"text": prompt, "negative_text": "", "decompose": decompose, "compose": "mean", "temperature": 0.0}
        optional["kb_tokens"] = [node("KBDMTextQuery", "KB Text Query", knowledge_base=[knowledge, 0], clip=[base, 1], **query), 0]
    if files.controlnet is not None:
        control = node("ControlNetLoader", "Load ControlNet", control_net_name=files.controlnet)
        range_ = {"strength": 1.0, "start_percent": 0.0, "end_percent": 1.0}
        links = {"positive": positive, "negative": negative, "control_net": [control, 0], "image": [picture, 0]}
        applied = node("ControlNetApplyAdvanced", "Apply ControlNet", **links, **range_)
        positive, negative = [applied, 0], [applied, 1]
    adapter = node("KBDMLoadAdapter", "Load KB-DM Adapter", adapter_name=files.adapter)
    strengths = {"kb_strength": 1.0, "dm_strength": 1.0, "pose_strength": 1.0, "start_percent": 0.0, "end_percent": 1.0, "negative_strength": 1.0}
    model = node("KBDMAdapterApply", "KB-DM Adapter Apply", model=[base, 0], adapter=[adapter, 0], **strengths, **optional)
    empty = node("EmptyLatentImage", "Empty Latent Image", width=pose.width, height=pose.height, batch_size=1)
    sampled = node(
        "KSampler", "KSampler", model=[model, 0], seed=seed, steps=steps, cfg=scale, sampler_name="ddim", scheduler="ddim_uniform",
        positive=positive, negative=negative, latent_image=[empty, 0], denoise=1.0,
    )  # fmt: skip
    decoded = node("VAEDecode", "VAE Decode", samples=[sampled, 0], vae=[base, 2])
    node("SaveImage", "Result", images=[decoded, 0], filename_prefix="kbdm_validation")
    return graph


def literal(prompt: str) -> str:
    """The prompt as CLIP Text Encode must be told it: brackets are text there, and no weights, behind a backslash."""
    return prompt.replace("(", r"\(").replace(")", r"\)")


def pose_json(pose: Pose) -> str:
    """OpenPose JSON of the pose with COCO-17 bodies, as Load Pose reads it. Necks, faces and hands are kept where the pose has them."""
    people = []
    for person in pose.people:
        body = person.openpose_joints() if person.neck is not None else person.body
        lists = {"face_keypoints_2d": person.face, "hand_left_keypoints_2d": person.hand_left, "hand_right_keypoints_2d": person.hand_right}
        points = {"pose_keypoints_2d": body, **{name: value for name, value in lists.items() if len(value)}}
        people.append({name: value.flatten().tolist() for name, value in points.items()})
    return json.dumps({"people": people, "canvas_width": pose.width, "canvas_height": pose.height})
