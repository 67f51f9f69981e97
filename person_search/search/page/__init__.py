# SPDX-License-Identifier: Apache-2.0
"""The page: a gallery and its model in a web browser, on this machine.

======================  ===========================================================================
``session.py``          what can be asked, without HTTP: images, persons, searches
``requests.py``         who is searched for, and how
``uploads.py``          the user's images, checked and kept for the time being
``rendering.py``        scenes and crops as JPEG, decoded once
``app.py``              the HTTP interface (FastAPI)
``safety.py``           who may ask, and what a browser may do with the answer
``server.py``           address, port, start and end (uvicorn)
``static/``             what runs in the browser: HTML, CSS and JavaScript without a build step
======================  ===========================================================================

Needs the extra ``page`` (FastAPI and uvicorn).
"""
