"""The frozen values that every stage speaks. No IO, no clock, no settings.

network   what is banned: a normalised IP network, and containment between networks
event     what was seen: one scan event, as a history line tells it
ban       what was decided: bans, their ends, and the tail positions an end remembers
plan      what the stores hold and what must change there
token     the mark that proves a store's content to be our own last writing
"""
