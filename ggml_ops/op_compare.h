// Is a result right? And: would we notice if it were not?
#pragma once

#include "op_graph.h"

struct hs_errors { double out, scores; }; // largest NMSEs seen

// Result of a backend (cpu: of the CPU backend, which has a tighter limit) against the reference.
// false: `why` says what is wrong, where, found and expected.
bool hs_compare(const struct hs_inputs * in, bool cpu, const struct hs_case_result * got, const struct hs_case_result * ref,
    struct hs_errors * worst, char * why, size_t size);

// Ways to spoil a result. hs_plant returns false where the result has nothing of that kind; else the comparison must fail.
enum hs_plant { HS_PLANT_VALUE, HS_PLANT_NAN, HS_PLANT_SCORE, HS_PLANT_SELECTION, HS_PLANT_REPEAT, HS_PLANT_GUARD, HS_PLANT_COUNT };
bool hs_plant(const struct hs_inputs * in, enum hs_plant kind, struct hs_case_result * r);
const char * hs_plant_name(enum hs_plant kind);
