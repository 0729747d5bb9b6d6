"""Names of the reference's command lines (train.py, evaluate.py, its launch scripts) that are called otherwise here."""

from lib.errors import nearest

# Its other flags are parameters of the same name.
FLAGS = {
    "bytenas_path": "`runs`, the folder that holds all runs",
    "config": "`parameter_set`, a file of notebooks/params",
    "data": "`split`",
    "load_checkpoint": "`checkpoint` when training, `run` when evaluating; make import-reference reads a .pth",
    "local_rank": "not needed: torchrun tells each process its rank",
    "log_step": "`log_iter`, counted in optimizer steps",
    "mode": "the notebook that runs: 2_train or 3_evaluate",
    "nproc_per_node": "`num_processes`",
    "submit_save_threshold": "`threshold`",
    "use_lora": "`lora_rank`: above 0 LoRA is on",
    "weighted_loss": "left out, since the reference never reads it",
}
# Its modules in fragments of parameter names (`freeze_params`, `unfreeze_params`).
MODULES = {"heatmap_predictor": "mask_head", "score_predictor": "score_head", "florence2": "encoder"}


def hint(name: str, known) -> str:
    """What to say after an unknown name: what the reference's flag is called here, else the nearest known name."""
    flag = str(name).lstrip("-").replace("-", "_")
    return f" (the reference's flag; here it is {FLAGS[flag]})" if flag in FLAGS else nearest(name, known)
