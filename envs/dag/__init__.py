"""Fine-grained offloading of LLM inference tasks whose subtasks form a directed acyclic graph (UCB-COMA)."""
