// Multi-token prediction (DeepSeek-V3, https://arxiv.org/abs/2412.19437, section 2.2): a module
// that guesses the token after the next one, for speculative decoding. Of position i, with the
// model's last hidden row h_i and the next token t_{i+1},
//   x_i = eh_proj [enorm(embed(t_{i+1})), hnorm(norm(h_i))],   y = block(x),
//   logits of t_{i+2} = head(head_norm(y_i)),
// embed, norm and head being the model's own, the block one of its kind (Block, Experts) with a
// latent cache of its own. For the token after that, the same module goes on from head_norm(y_i) in
// place of norm(h_i), and from its guess.
#pragma once
#include <string>

#include "layers/linear.h"

namespace ferry {

class Mtp {
  public:
    // `prefix`: "mtp/0/". All but the block.
    Mtp(WeightLoader& loader, const std::string& prefix);

    // x of rows whose next tokens have the rows `embedded` of the embedding, after norm(h) with the
    // weight `norm`; all [rows, dim] f32.
    void input(Kernels& kernels, Workspace& workspace, const Tensor& embedded, const Tensor& h,
               const Tensor& norm, const Tensor& x) const;
    const Tensor& head_norm() const { return head_norm_.view(); }

  private:
    OwnedTensor enorm_, hnorm_, head_norm_;
    Linear embedded_proj_, hidden_proj_;  // the halves of eh_proj
    float eps_;
};

}  // namespace ferry
