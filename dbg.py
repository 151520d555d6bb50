import estimate

estimate._prepare()
from pathlib import Path

import numpy as np
from finn.builder.build_dataflow import resolve_build_steps
from finn.builder.build_dataflow_config import DataflowBuildConfig
from qonnx.core.modelwrapper import ModelWrapper

cfg = DataflowBuildConfig.construct_from(Path("dataflow_build_config.json").absolute())
cfg.stop_step = "step_minimize_bit_width"
m = ModelWrapper("model.onnx")
T = list(np.load("tables/4b.npz").values())
for s in resolve_build_steps(cfg):
    m = s(m, cfg)
    o = []
    for n in m.graph.node:
        if "hreshold" in n.op_type:
            t = m.get_initializer(n.input[1])
            o.append([k for k, x in enumerate(T) if x.shape == t.shape and (x == t).all()])
    print("ORDER", s.__name__, o)
