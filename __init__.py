"""KB-DMGen for ComfyUI: knowledge-based global guidance and dynamic pose masking for SD1.5. Ids stand in people's workflows: they are forever."""

from .nodes import model_folders
from .nodes.adapter import KBDMAdapterApply, KBDMLoadAdapter
from .nodes.dynamic_mask import KBDMDynamicMaskAttention
from .nodes.knowledge_base import KBDMLoadKnowledgeBase
from .nodes.mini_model import KBDMLoadMini
from .nodes.plot_gate import KBDMPlotGate
from .nodes.pose import KBDMLoadPose, KBDMPoseToMask, KBDMRenderPose
from .nodes.preview_tokens import KBDMPreviewTokens
from .nodes.text_query import KBDMTextQuery

model_folders.register()

NODE_CLASS_MAPPINGS = {
    "KBDMLoadKnowledgeBase": KBDMLoadKnowledgeBase,
    "KBDMTextQuery": KBDMTextQuery,
    "KBDMLoadPose": KBDMLoadPose,
    "KBDMPoseToMask": KBDMPoseToMask,
    "KBDMRenderPose": KBDMRenderPose,
    "KBDMDynamicMaskAttention": KBDMDynamicMaskAttention,
    "KBDMLoadAdapter": KBDMLoadAdapter,
    "KBDMAdapterApply": KBDMAdapterApply,
    "KBDMPreviewTokens": KBDMPreviewTokens,
    "KBDMPlotGate": KBDMPlotGate,
    "KBDMLoadMini": KBDMLoadMini,
}

NODE_DISPLAY_NAME_MAPPINGS = {
    "KBDMLoadKnowledgeBase": "Load Knowledge Base",
    "KBDMTextQuery": "KB Text Query",
    "KBDMLoadPose": "Load Pose",
    "KBDMPoseToMask": "Pose-to-Mask",
    "KBDMRenderPose": "Render Pose",
    "KBDMDynamicMaskAttention": "Dynamic Mask Attention Patch",
    "KBDMLoadAdapter": "Load KB-DM Adapter",
    "KBDMAdapterApply": "KB-DM Adapter Apply",
    "KBDMPreviewTokens": "Preview KB Tokens",
    "KBDMPlotGate": "Plot Dynamic Mask",
    "KBDMLoadMini": "Load Mini Model",
}

WEB_DIRECTORY = "./web"

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "WEB_DIRECTORY"]
