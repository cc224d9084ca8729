ARG PYTHON_IMAGE=python:3.11-slim
FROM ${PYTHON_IMAGE}
WORKDIR /app
COPY pyproject.toml README.md LICENSE ./
COPY backtest_persist ./backtest_persist
RUN python3 -m pip install --no-cache-dir ".[cli]" "basana>=1.8" "bokeh_sampledata>=2024.2"
USER 65534:65534
ENTRYPOINT ["backtest-persist"]
CMD ["demo", "--servers", "env"]
