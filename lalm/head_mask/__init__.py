"""A head mask, and the file it lives in (`masks/README.md` is the page of the format).

HeadMask        one bit an attention head: 1 = head kept, 0 = silenced
ModelIdentity   the model a head mask was made for; head masks do not transfer
MaskFile        a task, its model, its head mask and where that came from, as JSON
"""

from lalm.head_mask.file import FORMAT, MaskFile, new_mask_file
from lalm.head_mask.identity import ModelIdentity
from lalm.head_mask.value import HeadMask

__all__ = ["FORMAT", "HeadMask", "MaskFile", "ModelIdentity", "new_mask_file"]
