(* What a protected VM is promised: that nobody else changes what is its own (integrity), and that what it does with it makes no difference
   to anybody else (confidentiality). Definitions; the theorems stand in Theorems.v. *)
Require Import NArith List Bool.
Require Import Pages Lifecycle.
Import ListNotations.
Local Open Scope N_scope.

(* ---- integrity ---------------------------------------------------------------------------------------------------- *)

(* Page [p] stands at [g] of the protected VM [v]. *)
Definition has_page (s : State) (v g p : N) : Prop :=
  exists vm, get (vms s) v = Some vm /\ kind vm = Protected /\ get (table vm) g = Some (Ram p).

(* What a protected VM sees and nobody else does: which page stands where, and what is in it. *)
Definition private_view (s : State) (v g p : N) (content : option N) : Prop :=
  has_page s v g p /\ state s p = Private v g /\ get (contents s) p = content.

(* What a VM does itself, and what the core does for the host with a VM that is switched off. Everything else is done by others:
   the host, the core for the host, other VMs. *)
Definition of_vm (v : N) (op : Op) : Prop :=
  match op with
  | GrantVmPage w _ | RevokeVmPage w _ | VmStore w _ _
  | CutVm w | ClearVmPage w _ | ClearVmRange w | FreeVmTable w => w = v
  | _ => False
  end.

(* From one state to the other, [v] keeps every page where it is, and its own ones as they are. *)
Definition keeps_view (v : N) (s s' : State) : Prop :=
  (forall g p, has_page s v g p -> has_page s' v g p) /\
  (forall g p c, private_view s v g p c -> private_view s' v g p c).

(* ---- confidentiality ---------------------------------------------------------------------------------------------- *)

(* Two states that are one for the host: they differ at most in what stands in pages that it does not reach. *)
Definition alike (a b : State) : Prop :=
  exists c, b = with_contents a c /\
    forall p, host_may_access (state a p) = true -> get c p = get (contents a) p.

(* What the host reads at a page, if it may. *)
Definition host_load (s : State) (p : N) : Result Denied (option N) :=
  let! s' := map_page_host s p in Done (if is_ram s p then get (contents s') p else None).

(* Sharing shows the host what stands in a page: that is what it is for. *)
Definition shows (op : Op) : Prop := match op with GrantVmPage _ _ => True | _ => False end.

Definition alike_results (a b : Result Denied State) : Prop :=
  match a, b with
  | Done s, Done t => alike s t
  | Refused x, Refused y => x = y
  | _, _ => False
  end.

(* Two machines that are one for the host: what is private, and the registers of vCPUs, may differ. *)
Definition same_for_host (s t : Lives) : Prop :=
  alike (memory s) (memory t) /\ lives t = lives s /\ gicv t = gicv s.

(* ---- everything that can happen to a machine ------------------------------------------------------------------------ *)

Inductive Event :=
| Calls (call : Call)                  (* a hypercall of the host, or what a vCPU's exit leads to *)
| HostTouches (p : N)                  (* the host reads, and what it reads is mapped *)
| HostStores (p value : N)
| CoreForgets (p : N)                  (* the core takes a mapping of the host away, which it may at any time *)
| VmStores (v gfn value : N)
| VmShares (v gfn : N)
| VmUnshares (v gfn : N)
| VmComputes (v vcpu regs : N).        (* a vCPU runs: its registers become anything *)

Definition page_op (e : Event) : option Op :=
  match e with
  | Calls _ | VmComputes _ _ _ => None
  | HostTouches p => Some (MapPageHost p)
  | HostStores p value => Some (HostStore p value)
  | CoreForgets p => Some (ForgetPageHost p)
  | VmStores v gfn value => Some (VmStore v gfn value)
  | VmShares v gfn => Some (GrantVmPage v gfn)
  | VmUnshares v gfn => Some (RevokeVmPage v gfn)
  end.

Definition happen (s : Lives) (e : Event) : Lives :=
  match e, page_op e with
  | Calls call, _ => fst (step s call)
  | VmComputes v c regs, _ =>
      mkLives (memory s) (lives s) (gicv s) (fun w d => if (w =? v) && (d =? c) then regs else registers s w d)
  | _, Some op => with_memory s (page_step (memory s) op)
  | _, None => s
  end.

(* What a VM does itself. *)
Definition own_doing (v : N) (e : Event) : Prop :=
  match e with VmStores w _ _ | VmShares w _ | VmUnshares w _ | VmComputes w _ _ => w = v | _ => False end.

(* It is not yet off, or still runs. *)
Definition alive (s : Lives) (v : N) : Prop :=
  exists l, get (lives s) v = Some l /\ (vm_state l <> PowerOff \/ is_running l = true).

(* Any machine that there can be. *)
Inductive reachable : Lives -> Prop :=
| switched_on : forall ram windows bits gicv, reachable (boot_lives ram windows bits gicv)
| happened : forall s e, reachable s -> reachable (happen s e).
