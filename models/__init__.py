"""The networks: plain `nn.Module`s by idea, and the RLModules around them."""
