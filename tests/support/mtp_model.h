// A Hugging Face model with its multi-token-prediction module, or without.
#pragma once
#include "runtime/hf_model.h"

namespace ferry {

class MtpModel : public HfModel {
  public:
    MtpModel(const std::string& directory, bool mtp) : HfModel(directory) {
        if (mtp) add_mtp();
    }
};

}  // namespace ferry
