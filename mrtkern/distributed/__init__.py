"""What several processes do together. Only here torch.distributed is imported; ranks talk in these calls alone."""
