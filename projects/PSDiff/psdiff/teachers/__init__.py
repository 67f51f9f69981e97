# SPDX-License-Identifier: Apache-2.0
"""Teachers: networks that give PSDiff the embedding e_0 of a person crop (Section V-D, Table VI).

A teacher is a :class:`~psdiff.teachers.reid_net.TeacherNet`, called with crops and giving unit
embeddings, and a :class:`~psdiff.teachers.losses.TeacherLoss` that trains it. The methods:

=========  =============================  =====================================================
name       file                           what is particular
=========  =============================  =====================================================
hhcl       ``hhcl.py``, ``memory.py``     memory of centroids, hard instances, unlabelled persons
s_reid     ``s_reid.py``                  batch norm neck, label smoothing, triplet, center loss
mgn        ``mgn.py``                     one global branch, branches of two and of three parts
agw        ``agw.py``                     non-local blocks, weighted regularized triplet
pplr       ``pplr.py``, ``agreement.py``  whole and parts refine each other's labels
=========  =============================  =====================================================

``registry.py`` builds them from a config. Around them: ``backbones.py``, ``crops.py``,
``batches.py``, ``schedule.py`` and ``trainer.py`` for training, ``embed.py`` and ``embeddings.py``
for the file of embeddings, ``evaluate.py`` for figures on ground-truth boxes.
"""
