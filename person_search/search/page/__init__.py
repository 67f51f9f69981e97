# SPDX-License-Identifier: Apache-2.0
"""The page: a gallery and its model in a web browser, on this machine.

======================  ===========================================================================
``session.py``          images, persons and searches, without HTTP
``uploads.py``          the user's images, validated and kept temporarily
``rendering.py``        scenes and crops as JPEG, decoded once
``app.py``              HTTP interface (FastAPI)
``label_app.py``        HTTP interface of ``person-search label``, see search/labeling.py
``access.py``           token, cookie and trusted proxy
``safety.py``           which requests are answered, and what a browser may do with the answers
``server.py``           address, port, start and end (uvicorn)
``static/``             HTML, CSS and JavaScript, without a build step
======================  ===========================================================================

Requires the extra ``page`` (FastAPI and uvicorn).
"""
