# SPDX-License-Identifier: Apache-2.0
"""Teachers: networks that provide the embedding e_0 of a person crop (Section V-D, Table VI).

A teacher is a :class:`~psdiff.teachers.reid_net.TeacherNet`, which maps crops to unit embeddings,
and a :class:`~psdiff.teachers.losses.TeacherLoss` that trains it. The methods:

=========  =========================  ========================================================
name       file                       distinguishing features
=========  =========================  ========================================================
hhcl       ``hhcl.py, memory.py``     memory of centroids, hard instances, unlabeled persons
s_reid     ``s_reid.py``              batch norm neck, label smoothing, triplet, center loss
mgn        ``mgn.py``                 a global branch, branches of two and of three parts
agw        ``agw.py``                 non-local blocks, weighted regularized triplet
pplr       ``pplr.py``                whole person and parts refine each other's labels
stripes    ``stripes.py``             frozen features, head in closed form; not in the paper
=========  =========================  ========================================================

``registry.py`` builds them from a config. ``backbones.py``, ``crops.py``, ``batches.py``,
``schedule.py`` and ``trainer.py`` serve training, ``folder.py`` output folders, ``embed.py`` and
``embeddings.py`` the file of embeddings, ``evaluate.py`` evaluation on ground-truth boxes.
"""
