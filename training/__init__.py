"""Makes head masks from (audio, text) pairs with every weight of the model frozen, and measures them.

manifest -> batches -> train (mask_logits, objective) -> MaskFile -> evaluate
"""
