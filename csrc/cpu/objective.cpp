// The slate objective on one thread.
#include "pope/slate_objective.h"

namespace pope::cpu {
namespace {

struct OneThread {
    int warp() const { return 0; }
    int warps() const { return 1; }
    int lane() const { return 0; }
    int lanes() const { return 1; }
    double sum(double x) const { return x; }
    double max(double x) const { return x; }
    double block_sum(double x) const { return x; }
    double block_max(double x) const { return x; }
};

}  // namespace

void slate_objective(const ObjectiveInputs& in, const ObjectiveOptions& options, ObjectiveOutputs& out) {
    bool valid = true;
    const ObjectiveTarget<double> target{&out.value,
                                         &out.utility_value,
                                         &out.diversity_value,
                                         out.log_weights,
                                         out.weights,
                                         &out.effective_sample_size,
                                         &out.clip_fraction,
                                         out.coefficients,
                                         &out.largest_log_weight,
                                         &out.largest_slate,
                                         &valid};
    OneThread thread;
    evaluate_objective(thread, in, options, target);
}

}  // namespace pope::cpu
