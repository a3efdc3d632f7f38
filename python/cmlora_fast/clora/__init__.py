"""CLoRA's run: rows with prompts of their own, contrastive updates, masks from attention."""
