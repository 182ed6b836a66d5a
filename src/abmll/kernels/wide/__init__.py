"""Ops for ranks above 16, whose tiles no longer fit into registers: matrices of a layer's size, between products that
torch makes, for one layer at a time.
"""
