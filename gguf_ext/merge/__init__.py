"""An adapter into a GGUF file: the file as it is, with other codes in some of its tensors.

    check   `check_merge`: what is refused, before any work
    stamp   the one entry that is added: which adapters are in the file
    copy    the bytes, streamed, some of them changed on their way
    write   `merge_file`: all parts of a file, published together

Every other entry, tensor and scale keeps its bytes, and the original is opened for reading alone.
"""

from gguf_ext.merge.check import check_merge as check_merge
from gguf_ext.merge.check import merged_target as merged_target
from gguf_ext.merge.stamp import merges_of as merges_of
from gguf_ext.merge.write import MergedFile as MergedFile
from gguf_ext.merge.write import merge_file as merge_file
