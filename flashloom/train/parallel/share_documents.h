#pragma once

#include "flashloom/comm/communicator.h"
#include "flashloom/text/token_documents.h"

namespace flashloom {

/// Rank 0's documents to all ranks, which hand in empty ones: files are read and tokenized once,
/// and only rank 0 needs them. 5 bytes a token travel.
void share_documents(Communicator& communicator, TokenDocuments& documents);

}  // namespace flashloom
