# A public demo of Tunebook as a Hugging Face Docker Space, or on any machine with Docker. See "A demo for visitors" in
# the README. No image was built where Tunebook is developed: its steps were run by hand, as the same kind of user.
FROM python:3.12-slim

# tini is process 1: it passes SIGTERM on to the server and reaps supervisors whose server is gone.
RUN apt-get update && apt-get install -y --no-install-recommends tini && rm -rf /var/lib/apt/lists/*

# A Space runs its container as user 1000; what is written at run time lies in that user's home.
RUN useradd --create-home --uid 1000 user
USER user
ENV HOME=/home/user \
    PATH=/home/user/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /home/user/app

# The processor build of torch first: the one for CUDA takes about 3 GB with its libraries. A machine with a card wants that
# one: a Space's variable of this name, or --build-arg TORCH_INDEX_URL=https://download.pytorch.org/whl/cu130.
ARG TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu
RUN python -m venv /home/user/venv
RUN pip install --index-url "$TORCH_INDEX_URL" "torch==2.13.0"

COPY --chown=user pyproject.toml constraints.txt README.md LICENSE NOTICE ./
COPY --chown=user app.py ./
COPY --chown=user engine ./engine
COPY --chown=user pages ./pages
COPY --chown=user recipes ./recipes
COPY --chown=user .streamlit ./.streamlit
RUN pip install -c constraints.txt -e .

# TUNEBOOK_DEMO: every visitor has a workspace of their own and the limits of engine/limits.toml. The page stands in a frame
# of another site there, where the cookie of the XSRF check does not come along; uploads carry a ticket of their own.
# The name of the host is the Space's; pages have no uploader but ours, so Streamlit's own takes next to nothing.
# A message that is sent by halves is held in memory, on each of the sockets that engine/limits.toml allows.
ENV TUNEBOOK_DEMO=1 \
    TUNEBOOK_HOME=/home/user/tunebook \
    TUNEBOOK_MACHINE_DIR=/home/user/tunebook-machine \
    HF_HOME=/home/user/.cache/huggingface \
    HF_HUB_OFFLINE=1 \
    STREAMLIT_SERVER_ADDRESS=0.0.0.0 \
    STREAMLIT_SERVER_PORT=8501 \
    STREAMLIT_SERVER_HEADLESS=true \
    STREAMLIT_SERVER_ALLOWED_HOSTS=* \
    STREAMLIT_SERVER_MAX_UPLOAD_SIZE=1 \
    STREAMLIT_SERVER_MAX_MESSAGE_SIZE=5 \
    STREAMLIT_SERVER_ENABLE_XSRF_PROTECTION=false
EXPOSE 8501
HEALTHCHECK --start-period=60s CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8501/api/health', timeout=5)"]
ENTRYPOINT ["tini", "--"]
CMD ["streamlit", "run", "app.py"]
